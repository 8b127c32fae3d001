"""The benchmark against the Go reference plugins: `make bench` writes docs/benchmarks.md."""
