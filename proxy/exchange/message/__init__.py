"""What an exchange is made of: its state and record, its heads and bodies on their way. Pure, but for the clock."""
