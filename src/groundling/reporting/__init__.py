"""Events and files of a run -> console output, plots, HTML reports, and trackers."""
