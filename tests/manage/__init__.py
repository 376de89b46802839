"""What an owner types."""
