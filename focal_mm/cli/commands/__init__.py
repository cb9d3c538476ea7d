"""The commands of ``focal-mm``, a module each: ``add_arguments(parser)`` and ``run(args)``.

The docstring is the text of ``--help``. What the command needs is imported within ``run``, so that
the help, the completion of a shell and a mistake on the command line don't wait for torch.
"""
