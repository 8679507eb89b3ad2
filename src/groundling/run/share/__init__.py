"""A run goes in, one HTML page comes out that generates text in a browser, without a network: `Run.share`.

The page holds the weights in 8 bits and an engine in JavaScript. Its parts are files of their own here: `page.html` is
the template, and the scripts are put into it in the order of `page.SCRIPTS`. Nothing of it needs a build.
"""
