"""One sample of LiteRT-LM: `PYTHON litert_sample.py MODEL THREADS PREFILL DECODE`, with the peer's Python.

Prints one JSON object. As with its own `litert-lm benchmark`, everything runs once to warm up; the second run counts.
"""

import json
import sys


def main() -> int:
    """Entry point."""
    import litert_lm

    model, threads, prefill, decode = sys.argv[1], *map(int, sys.argv[2:])
    benchmark = litert_lm.Benchmark(
        model,
        backend=litert_lm.Backend.CPU(thread_count=threads),
        prefill_tokens=prefill,
        decode_tokens=decode,
        use_ringbuffers_local_attention=True,
    )
    benchmark.run()
    done = benchmark.run()
    answer = {
        "prefill": [done.last_prefill_token_count, done.last_prefill_tokens_per_second],
        "decode": [done.last_decode_token_count, done.last_decode_tokens_per_second],
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
