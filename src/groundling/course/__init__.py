"""The course: eight chapters, from characters to a model that answers. A learner's file goes in; what is wrong with it
comes out, in a sentence.

Each chapter is one Markdown file in `chapters`, and every listing in it runs. Its exercises have an answer of ours in
`solutions` and a check in `checks`. The names below are what listings import.
"""

from __future__ import annotations

from groundling.course.lesson import checked, course_text, predict, shell, show

__all__ = ["checked", "course_text", "predict", "shell", "show"]
