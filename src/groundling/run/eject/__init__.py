"""A run goes in, three files of plain PyTorch come out: `Run.eject`.

Their templates, `*.py.jinja`, are Python with jinja's statements in comments, such as `#% if rope %#`. They keep only
what the run needs.
"""
