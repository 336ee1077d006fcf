"""Tables and figures from what runs left behind."""
