"""When not to believe a model, of a data set: it is asked, resumably, and one page tells what came of it."""
