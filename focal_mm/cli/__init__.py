"""The code behind tools/: from a command line to a run, a table or a picture."""
