"""Problems with a known optimum and rival methods: for `bench.bench_search_regret`."""
