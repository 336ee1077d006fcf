"""The command line: one file a command, and the only room that prints.

What a command does is elsewhere; here is what its user types and sees. ``main`` puts the parsers
together and turns errors into one line; ``options`` holds what several commands take, ``show`` and
``live`` how things look (only these two know rich), ``progress`` how a run is followed. A command
imports what is heavy when it is called, so that ``--help`` and listings answer at once.
"""
