"""What is called how, where it lives, and how it is loaded."""
