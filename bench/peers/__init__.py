"""What others would write for the same work: the peers that rows of `bench/` are compared with."""
