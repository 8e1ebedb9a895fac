/* SHA-256 against the vectors of FIPS 180-4, and the fast code against the portable one. */
#include <stdbool.h>

#include "check.h"
#include "cpu.h"
#include "sha256.h"

static void hash(const char *text, size_t repeat, char hex[65]) {
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    for (size_t i = 0; i < repeat; i++) {
        ellm_sha256_update(&sha, text, strlen(text));
    }
    ellm_sha256_hex(&sha, hex);
}

/* With any argument it also says whether the processor's SHA instructions are used. */
int main(int argc, char **argv) {
    (void)argv;
    char hex[65], expected[65];
    hash("", 1, hex);
    CHECK(strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0);
    hash("abc", 1, hex);
    CHECK(strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 0);
    hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, hex);
    CHECK(strcmp(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1") == 0);
    hash("aaaaaaaaaa", 100000, hex);
    CHECK(strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0") == 0);

    unsigned char data[400];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (unsigned char)(i * 37 + 11);
    }
    for (size_t n = 0; n < sizeof data; n++) { /* every length, in two pieces, against the portable code in one */
        ellm_sha256 fast, portable;
        ellm_sha256_init(&fast);
        ellm_sha256_update(&fast, data, n / 3);
        ellm_sha256_update(&fast, data + n / 3, n - n / 3);
        ellm_sha256_hex(&fast, hex);
        ellm_sha256_init_portable(&portable);
        ellm_sha256_update(&portable, data, n);
        ellm_sha256_hex(&portable, expected);
        CHECK(strcmp(hex, expected) == 0);
    }
    ellm_sha256 chosen, plain;
    ellm_sha256_init(&chosen);
    ellm_sha256_init_portable(&plain);
    bool fast = chosen.compress != plain.compress;
    CHECK(fast == (ellm_cpu_has("sha_ni") || ellm_cpu_has("sha2")));
    if (argc > 1) {
        printf("%s\n", fast ? "SHA instructions" : "portable");
    }
    return check_result();
}
