"""From events to alerts: the policy, the coincidence of several stations, rates, and the evidence kept."""
