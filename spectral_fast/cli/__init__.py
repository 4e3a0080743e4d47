"""The ``spectral-fast`` command."""

from .commands import app, main
from .survey_command import survey

__all__ = ["app", "main", "survey"]
