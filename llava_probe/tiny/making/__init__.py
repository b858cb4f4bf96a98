"""How the weights of the tiny model were made; none of it is used when they are."""
