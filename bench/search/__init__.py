"""Problems with a known optimum, rival methods, and what a study saves: for `bench.bench_search_regret`."""
