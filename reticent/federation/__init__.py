"""Several institutions, one model: rounds, aggregation, privacy of sites, secure sums, and Flower as transport."""
