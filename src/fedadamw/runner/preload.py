"""Imports nearly everything that a run needs, so that a process forked afterwards starts at once."""

from fedadamw.runner.libraries import import_all

import_all()
