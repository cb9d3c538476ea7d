"""The command ``focal-mm``: from a command line to a run, a table or a picture."""
