"""The parts of an exchange: its state and record, its heads and bodies. Pure, except for the clock."""
