"""History, worker heartbeat, health and alerts."""
