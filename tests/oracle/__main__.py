"""`make oracle`: makes every golden file anew."""

from tests.oracle import demo, families, logits, rope

if __name__ == "__main__":
    rope.main()
    logits.main()
    families.main()
    demo.main()
