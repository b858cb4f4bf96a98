"""Every method on every case, scored alike: the run, the scores, the page and its figures."""
