"""The observatory's side of Talus: receive, store, show, call, answer and correct."""
