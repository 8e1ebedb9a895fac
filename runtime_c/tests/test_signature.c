/* Signatures: RFC 8032's vectors, what must not pass, and bundles that were tampered with. */
#include "posix.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "edgellm.h"
#include "monocypher-ed25519.h"
#include "signature.h"
#include "toy.h"

enum { line_length = 202 };

static struct toy toy;

static void hex(const uint8_t *bytes, size_t n, char *text) {
    for (size_t i = 0; i < n; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
}

static void unhex(const char *text, uint8_t *bytes) {
    for (size_t i = 0; text[2 * i] != '\0'; i++) {
        unsigned value;
        sscanf(text + 2 * i, "%2x", &value);
        bytes[i] = (uint8_t)value;
    }
}

/* A key made from one byte, and its signature as a line of manifest.sig. */
static void sign(uint8_t who, const void *message, size_t n, char line[line_length + 1]) {
    uint8_t seed[32] = {who}, secret[64], public[32], signature[64];
    crypto_ed25519_key_pair(secret, public, seed);
    crypto_ed25519_sign(signature, secret, message, n);
    memcpy(line, "ed25519 ", 8);
    hex(public, 32, line + 8);
    line[72] = ' ';
    hex(signature, 64, line + 73);
    memcpy(line + 201, "\n", 2);
}

static void pin(uint8_t who, char line[80]) {
    char signed_line[line_length + 1];
    sign(who, "", 0, signed_line);
    snprintf(line, 80, "%.72s me\n", signed_line);
}

static ellm_status check(const char *signatures, const char *pinned, const char *message) {
    ellm_error error = {""};
    ellm_status status =
        ellm_signature_check(signatures, strlen(signatures), pinned, strlen(pinned), message, strlen(message), &error);
    CHECK((status == ELLM_OK) == (error.text[0] == '\0'));
    return status;
}

/* RFC 8032, 7.1: tests 1 to 3. */
static void test_vectors(void) {
    static const char *const vectors[][3] = {
        {"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
         "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bb"
         "e"
         "24655141438e7a100b",
         ""},
        {"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302"
         "a"
         "eeb00d291612bb0c00",
         "\x72"},
        {"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
         "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed"
         "2"
         "8dc027beceea1ec40a",
         "\xaf\x82"},
    };
    for (size_t i = 0; i < 3; i++) {
        char line[line_length + 1], pinned[80];
        snprintf(line, sizeof line, "ed25519 %s %s\n", vectors[i][0], vectors[i][1]);
        snprintf(pinned, sizeof pinned, "ed25519 %s\n", vectors[i][0]);
        CHECK(check(line, pinned, vectors[i][2]) == ELLM_OK);
        CHECK(check(line, pinned, "something else") == ELLM_SIGNATURE_INVALID);
        for (size_t at = 73; at < line_length - 1; at++) { /* every digit of the signature counts */
            char before = line[at];
            line[at] = before == '0' ? '1' : '0';
            CHECK(check(line, pinned, vectors[i][2]) == ELLM_SIGNATURE_INVALID);
            line[at] = before;
        }
    }
}

/* S + L is the same scalar in another coat; RFC 8032 asks to refuse it. */
static void test_malleable(void) {
    static const uint8_t order[32] = {0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7,
                                      0xa2, 0xde, 0xf9, 0xde, 0x14, 0,    0,    0,    0,    0,    0,
                                      0,    0,    0,    0,    0,    0,    0,    0,    0,    0x10};
    char line[line_length + 1], pinned[80];
    uint8_t scalar[33] = {0};
    pin(1, pinned);
    sign(1, "m", 1, line);
    CHECK(check(line, pinned, "m") == ELLM_OK);
    line[201] = '\0';
    unhex(line + 73 + 64, scalar);
    unsigned carry = 0;
    for (int i = 0; i < 32; i++) {
        carry += scalar[i] + order[i];
        scalar[i] = (uint8_t)carry;
        carry >>= 8;
    }
    CHECK(carry == 0);
    hex(scalar, 32, line + 73 + 64);
    line[201] = '\n';
    CHECK(check(line, pinned, "m") == ELLM_SIGNATURE_INVALID);
}

/* Keys of small order accept signatures that nobody made: such a key is none. Encodings: RFC 7748's and Ristretto's
 * lists of points of order 1, 2, 4, 8. */
static void test_small_order(void) {
    static const char *const points[] = {
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    };
    char line[line_length + 1], pinned[80], good[80];
    pin(1, good);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        snprintf(pinned, sizeof pinned, "ed25519 %s\n", points[i]);
        snprintf(line, sizeof line, "ed25519 %s %s%064d\n", points[i], points[0], 0);
        CHECK(check(line, pinned, "anything") == ELLM_KEY_INVALID);
        CHECK(check(line, good, "anything") == ELLM_SIGNATURE_UNTRUSTED);
        sign(1, "m", 1, line); /* an honest key with R of small order */
        memcpy(line + 73, points[i], 64);
        CHECK(check(line, good, "m") == ELLM_SIGNATURE_INVALID);
    }
}

static void test_lines(void) {
    char one[line_length + 1], two[line_length + 1], pinned[240], text[17 * line_length + 1] = "";
    sign(1, "m", 1, one);
    sign(2, "m", 1, two);
    pin(1, pinned);
    CHECK(check("", pinned, "m") == ELLM_SIGNATURE_MISSING);
    CHECK(check(two, pinned, "m") == ELLM_SIGNATURE_UNTRUSTED);
    snprintf(text, sizeof text, "%s%s", two, one); /* one that is pinned is enough, in any place */
    CHECK(check(text, pinned, "m") == ELLM_OK);
    pin(3, pinned);
    pin(2, pinned + strlen(pinned));
    CHECK(check(text, pinned, "m") == ELLM_OK);
    CHECK(check(one, pinned, "m") == ELLM_SIGNATURE_UNTRUSTED);
    pinned[strlen(pinned) - 4] = '\0'; /* "… me\n" without its name */
    CHECK(check(two, pinned, "m") == ELLM_SIGNATURE_UNTRUSTED);
    /* What is not exactly such lines. */
    pin(1, pinned);
    for (size_t n = 1; n < line_length; n++) {
        memcpy(text, one, n);
        text[n] = '\0';
        CHECK(check(text, pinned, "m") == ELLM_SIGNATURE_INVALID);
    }
    for (size_t at = 0; at < line_length; at++) {
        if (at < 8 || at > 71) {
            snprintf(text, sizeof text, "%s", one);
            text[at] = 'A';
            CHECK(check(text, pinned, "m") == ELLM_SIGNATURE_INVALID);
        }
    }
    text[0] = '\0';
    for (int i = 0; i < 17; i++) {
        strcat(text, i == 16 ? one : two);
    }
    CHECK(check(text, pinned, "m") == ELLM_SIGNATURE_INVALID);
    CHECK(check(text + line_length, pinned, "m") == ELLM_OK);
    /* Pinned keys that are none. */
    CHECK(check(one, "", "m") == ELLM_KEY_INVALID);
    CHECK(check(one, "\n", "m") == ELLM_KEY_INVALID);
    CHECK(check(one, "ed25519 12\n", "m") == ELLM_KEY_INVALID);
    pinned[0] = 'E';
    CHECK(check(one, pinned, "m") == ELLM_KEY_INVALID);
}

/* ---- bundles ---- */

static char keys[64], path_of_keys[96];

static ellm_status open_toy(ellm_error *error) {
    const ellm_trust trust = {.pinned = path_of_keys};
    ellm_model *model = NULL;
    ellm_status status = ellm_model_open_trusted(toy.directory, &trust, &model, error);
    CHECK((model != NULL) == (status == ELLM_OK));
    ellm_model_close(model);
    return status;
}

static void expect(ellm_status expected, const char *part, int line) {
    ellm_error error = {""};
    int before = check_failures;
    CHECK_STATUS(open_toy(&error), expected, error, part);
    if (check_failures != before) {
        fprintf(stderr, "  from line %d\n", line);
    }
}
#define EXPECT(status, part) expect(ELLM_##status, part, __LINE__)

static void sign_toy(uint8_t who) {
    char path[512], line[line_length + 1];
    static char manifest[16384];
    snprintf(path, sizeof path, "%s/manifest.json", toy.directory);
    sign(who, manifest, toy_read(path, manifest, sizeof manifest), line);
    toy_write_file(&toy, "manifest.sig", line, line_length);
}

static void write_keys(const char *text, mode_t mode) {
    FILE *file = fopen(path_of_keys, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0 || chmod(path_of_keys, mode) != 0) {
        toy_die(path_of_keys);
    }
}

/* A file of the bundle with one byte changed, as the disk has it then; undone afterwards. */
static void tamper(const char *name, ellm_status expected, const char *part) {
    const toy_file *file = toy_find(&toy, name);
    file->data[file->bytes / 2] ^= 1;
    toy_write_file(&toy, name, file->data, file->bytes);
    file->data[file->bytes / 2] ^= 1;
    expect(expected, part, __LINE__);
    const ellm_trust trust = {.pinned = path_of_keys};
    ellm_error error = {""};
    CHECK_STATUS(ellm_bundle_verify_trusted(toy.directory, &trust, NULL, NULL, &error), expected, error, part);
    toy_write_file(&toy, name, file->data, file->bytes);
    EXPECT(OK, "");
}

static void test_bundle(void) {
    char pinned[80], path[512], text[16384];
    ellm_error error = {""};
    pin(1, pinned);
    write_keys(pinned, 0644);
    toy_write(&toy);
    EXPECT(SIGNATURE_MISSING, "manifest.sig: the bundle is not signed; sign with key");
    sign_toy(2);
    EXPECT(SIGNATURE_UNTRUSTED, "signed by another key");
    sign_toy(1);
    EXPECT(OK, "");
    tamper("plan.json", ELLM_BUNDLE_CORRUPT, "plan.json");
    tamper("kernels.so", ELLM_BUNDLE_CORRUPT, "kernels.so");
    tamper("tokenizer.bin", ELLM_BUNDLE_CORRUPT, "tokenizer.bin");
    tamper("weights/model.safetensors", ELLM_BUNDLE_CORRUPT, "weights/model.safetensors");

    /* The manifest changed, and its digest made to match: only the signature can tell. */
    snprintf(path, sizeof path, "%s/manifest.json", toy.directory);
    size_t n = toy_read(path, text, sizeof text - 1);
    text[n] = '\0';
    char *at = strstr(text, "\"top_k\":40"), digest[96], sha[65];
    at[9] = '1';
    toy_write_file(&toy, "manifest.json", text, n);
    EXPECT(BUNDLE_CORRUPT, "manifest.json: does not match manifest.sha256");
    toy_hash(text, n, sha);
    snprintf(digest, sizeof digest, "%s  manifest.json\n", sha);
    toy_write_file(&toy, "manifest.sha256", digest, strlen(digest));
    EXPECT(SIGNATURE_INVALID, "manifest.sig: the signature is wrong");
    /* A file exchanged together with its entry: the same. */
    toy_replace(&toy, "plan.json", "\"kv_block\":64", "\"kv_block\": 64");
    toy_write(&toy);
    EXPECT(SIGNATURE_INVALID, "manifest.sig");
    CHECK_STATUS(ellm_bundle_verify(toy.directory, NULL, NULL, &error), ELLM_OK, error, ""); /* nothing is pinned */
    sign_toy(1);
    EXPECT(OK, "");

    /* Pinned keys that cannot be read shut the door. */
    write_keys(pinned, 0664);
    EXPECT(KEY_INVALID, "open to others");
    write_keys("", 0644);
    EXPECT(KEY_INVALID, "edgellm trust");
    unlink(path_of_keys);
    EXPECT(IO, path_of_keys);
    mkdir(path_of_keys, 0755);
    EXPECT(IO, path_of_keys);
    rmdir(path_of_keys);
}

int main(void) {
    test_vectors();
    test_malleable();
    test_small_order();
    test_lines();
    strcpy(keys, "/tmp/edgellm-keys-XXXXXX");
    if (mkdtemp(keys) == NULL) {
        toy_die(keys);
    }
    snprintf(path_of_keys, sizeof path_of_keys, "%s/trusted_keys", keys);
    toy_open(&toy, 0);
    test_bundle();
    toy_close(&toy);
    rmdir(keys);
    return check_result();
}
