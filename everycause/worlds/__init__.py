"""Studies over many worlds and seeds: the same rows trained in each, compared with intervals over seeds and images."""
