"""The engine on a GPU that is none: `bench.fake_gpu` records, `emulate` computes."""
