"""Who may say what when: handshake, steps, checkpoint requests, goodbye."""
