"""The training loop and all that it is made of; no launcher is known here."""
