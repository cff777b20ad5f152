"""What Talus says over MQTT: topics, payloads, and their schemas. No I/O."""
