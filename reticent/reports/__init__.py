"""One page that a data-protection officer can read and sign, made from measurements and a guarantee only."""
