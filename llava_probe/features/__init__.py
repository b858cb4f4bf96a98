"""Features of a whole data set, extracted once and kept in files."""
