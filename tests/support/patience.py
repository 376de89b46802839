"""The one time that tests wait for what must come. A test that passes waits for an event, and never for this time."""

import os

SCALE = float(os.environ.get("PATIENCE") or 1)
"""`PATIENCE=3 make test` waits three times as long, for a machine that has much else to do."""

PATIENCE = 60.0 * SCALE
"""Seconds after which a test that waits has failed, however slow the machine is."""
