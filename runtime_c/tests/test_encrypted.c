/* Encrypted weights: RFC 8439's vector, a file as the host makes it, what must not open, and a model's answers. */
#include "posix.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "edgellm.h"
#include "encrypted.h"
#include "monocypher.h"
#include "toy.h"

static const char shard_name[] = "weights/model.safetensors";
static struct toy toy;
static char folder[64], path_of_key[96];
static uint8_t encrypted[1 << 18];
static size_t n_encrypted;

static size_t unhex(const char *text, uint8_t *bytes) {
    size_t n = 0;
    for (; text[2 * n] != '\0'; n++) {
        unsigned value;
        sscanf(text + 2 * n, "%2x", &value);
        bytes[n] = (uint8_t)value;
    }
    return n;
}

static void write_key(uint8_t first, size_t n, mode_t mode) {
    uint8_t key[64];
    for (size_t i = 0; i < n; i++) {
        key[i] = (uint8_t)(first + i);
    }
    unlink(path_of_key);
    FILE *file = fopen(path_of_key, "w");
    if (file == NULL || fwrite(key, 1, n, file) != n || fclose(file) != 0 || chmod(path_of_key, mode) != 0) {
        toy_die(path_of_key);
    }
}

static ellm_secret read_key(uint8_t first) {
    ellm_secret secret = {.id = ""};
    write_key(first, 32, 0600);
    CHECK(ellm_secret_read(path_of_key, &secret, NULL) == ELLM_OK);
    return secret;
}

/* RFC 8439, 2.8.2. */
static void test_vector(void) {
    static const char text[] = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
                               "future, sunscreen would be it.";
    uint8_t key[32], nonce[12], more[12], cipher[160], plain[114];
    for (size_t i = 0; i < 32; i++) {
        key[i] = (uint8_t)(0x80 + i);
    }
    unhex("070000004041424344454647", nonce);
    unhex("50515253c0c1c2c3c4c5c6c7", more);
    size_t n = unhex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1"
                     "a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3f"
                     "f4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
                     cipher);
    CHECK(n == sizeof plain + 16);
    crypto_aead_ctx aead;
    crypto_aead_init_ietf(&aead, key, nonce);
    CHECK(crypto_aead_read(&aead, plain, cipher + 114, more, sizeof more, cipher, 114) == 0);
    CHECK(memcmp(plain, text, sizeof plain) == 0);
    for (size_t i = 0; i < n; i++) {
        cipher[i] ^= 0x10;
        crypto_aead_init_ietf(&aead, key, nonce);
        CHECK(crypto_aead_read(&aead, plain, cipher + 114, more, sizeof more, cipher, 114) != 0);
        cipher[i] ^= 0x10;
    }
}

/* What edgellm/encryption.py makes of "weights" with the key 00 01 … 1f; tests/unit/test_encryption.py has it too. */
static void test_file(void) {
    uint8_t bytes[80], plain[ELLM_ENCRYPTED_CHUNK];
    ellm_secret secret = read_key(0);
    ellm_error error = {""};
    size_t n =
        unhex("454c4c4d454e43310700000000000000d8ba0b190bb84fb233356333373332373833313830323335261b4f11d5778493c6035"
              "acad5d6de93996cb85c06ceff",
              bytes);
    ellm_file file = {.data = bytes, .bytes = n, .descriptor = -1};
    CHECK(memcmp(secret.id, "35c3732783180235", 16) == 0);
    CHECK(n == ellm_encrypted_bytes(7));
    CHECK(ellm_encrypted_check(&file, "f", 7, &secret, NULL) == ELLM_OK);
    CHECK(ellm_encrypted_read(&file, 7, &secret, 0, plain) && memcmp(plain, "weights", 7) == 0);
    for (size_t i = 0; i < n; i++) { /* every byte is authenticated, or checked */
        bytes[i] ^= 1;
        CHECK(ellm_encrypted_check(&file, "f", 7, &secret, NULL) != ELLM_OK
              || !ellm_encrypted_read(&file, 7, &secret, 0, plain));
        bytes[i] ^= 1;
    }
    CHECK_STATUS(ellm_encrypted_check(&file, "f", 8, &secret, &error), ELLM_BUNDLE_CORRUPT, error, "f: ");
    secret = read_key(1);
    CHECK_STATUS(ellm_encrypted_check(&file, "f", 7, &secret, &error), ELLM_DECRYPTION_FAILED, error, "another key");
    ellm_secret_wipe(&secret);
    CHECK_STATUS(ellm_encrypted_check(&file, "f", 7, &secret, &error), ELLM_KEY_MISSING, error, "--encrypt");

    CHECK(ellm_encrypted_bytes(0) == 0 && ellm_encrypted_bytes(UINT64_MAX) == 0);
    for (uint64_t size = 65530; size < 65542; size++) { /* never the size itself, and no size twice */
        CHECK(ellm_encrypted_bytes(size) == size + 40 + (size > 65536 ? 32u : 16u));
    }
}

static void test_keys(void) {
    ellm_secret secret = {.id = ""};
    ellm_error error = {""};
    write_key(0, 31, 0600);
    CHECK_STATUS(ellm_secret_read(path_of_key, &secret, &error), ELLM_KEY_INVALID, error, "not 32 bytes");
    write_key(0, 33, 0600);
    CHECK_STATUS(ellm_secret_read(path_of_key, &secret, &error), ELLM_KEY_INVALID, error, "not 32 bytes");
    write_key(0, 32, 0644);
    CHECK_STATUS(ellm_secret_read(path_of_key, &secret, &error), ELLM_KEY_INVALID, error, "chmod 600");
    write_key(0, 32, 0440); /* how systemd hands out credentials */
    CHECK_STATUS(ellm_secret_read(path_of_key, &secret, &error), ELLM_OK, error, "");
    unlink(path_of_key);
    CHECK_STATUS(ellm_secret_read(path_of_key, &secret, &error), ELLM_IO, error, path_of_key);
}

/* ---- a model ---- */

static void encrypt_shard(const ellm_secret *secret) {
    const toy_file *file = toy_find(&toy, shard_name);
    memcpy(encrypted, "ELLMENC1", 8);
    for (size_t i = 0; i < 8; i++) {
        encrypted[8 + i] = (uint8_t)((uint64_t)file->bytes >> 8 * i);
        encrypted[16 + i] = (uint8_t)(0xa0 + i);
    }
    memcpy(encrypted + 24, secret->id, 16);
    n_encrypted = 40;
    for (size_t at = 0, i = 0; at < file->bytes; i++) {
        size_t n = file->bytes - at < 65536 ? file->bytes - at : 65536;
        uint8_t nonce[12] = {0};
        crypto_aead_ctx aead;
        memcpy(nonce, encrypted + 16, 8);
        nonce[8] = (uint8_t)i;
        crypto_aead_init_ietf(&aead, secret->key, nonce);
        crypto_aead_write(&aead, encrypted + n_encrypted, encrypted + n_encrypted + n, encrypted, 40,
                          (const uint8_t *)file->data + at, n);
        n_encrypted += n + 16;
        at += n;
    }
    CHECK(n_encrypted == ellm_encrypted_bytes(file->bytes));
    toy_write_file(&toy, shard_name, encrypted, n_encrypted);
}

static ellm_status open_model(bool with_key, ellm_model **model, ellm_error *error) {
    const ellm_trust trust = {.secret = with_key ? path_of_key : NULL};
    return ellm_model_open_trusted(toy.directory, &trust, model, error);
}

static void expect(bool with_key, ellm_status expected, const char *part, int line) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    int before = check_failures;
    CHECK_STATUS(open_model(with_key, &model, &error), expected, error, part);
    CHECK((model != NULL) == (expected == ELLM_OK));
    if (check_failures != before) {
        fprintf(stderr, "  from line %d\n", line);
    }
    ellm_model_close(model);
}
#define EXPECT(with_key, status, part) expect(with_key, ELLM_##status, part, __LINE__)

static void answer(const ellm_model *model, float logits[TOY_VOCAB]) {
    static const int32_t tokens[] = {5, 9, 3, 30, 7};
    ellm_context *context = NULL;
    ellm_error error;
    CHECK_STATUS(ellm_context_open(model, NULL, &context, &error), ELLM_OK, error, "");
    CHECK(context != NULL && ellm_session_eval(context, 0, tokens, 5, logits) == ELLM_OK);
    ellm_context_close(context);
}

static void test_model(void) {
    float plain[TOY_VOCAB], decrypted[TOY_VOCAB];
    ellm_error error = {""};
    ellm_model *model = NULL;
    ellm_model_info info;
    ellm_secret secret = read_key(7);
    toy_write(&toy);
    CHECK_STATUS(open_model(true, &model, &error), ELLM_OK, error, ""); /* a key, and nothing that needs it */
    answer(model, plain);
    ellm_model_get_info(model, &info);
    CHECK(info.decrypted_bytes == 0 && info.locked_bytes == 0);
    ellm_model_close(model);

    encrypt_shard(&secret);
    CHECK_STATUS(open_model(true, &model, &error), ELLM_OK, error, "");
    answer(model, decrypted);
    CHECK(memcmp(plain, decrypted, sizeof plain) == 0);
    ellm_model_get_info(model, &info);
    CHECK(info.decrypted_bytes == 131072 && info.locked_bytes == 131072);
    ellm_model_close(model);
    EXPECT(true, OK, "");
    EXPECT(false, KEY_MISSING, "weights/model.safetensors: the key to the weights is missing");
    CHECK_STATUS(ellm_bundle_verify(toy.directory, NULL, NULL, &error), ELLM_KEY_MISSING, error, shard_name);
    write_key(8, 32, 0600);
    EXPECT(true, DECRYPTION_FAILED, "another key");
    write_key(7, 32, 0600);

    struct rlimit before, none = {0};
    getrlimit(RLIMIT_MEMLOCK, &before);
    none.rlim_max = before.rlim_max;
    if (geteuid() != 0 && setrlimit(RLIMIT_MEMLOCK, &none) == 0) { /* root may lock what it likes */
        CHECK_STATUS(open_model(true, &model, &error), ELLM_OK, error, "");
        ellm_model_get_info(model, &info);
        CHECK(info.decrypted_bytes == 131072 && info.locked_bytes == 0);
        ellm_model_close(model);
        setrlimit(RLIMIT_MEMLOCK, &before);
    }
}

static void test_tampered(void) {
    static uint8_t other[1 << 18];
    const size_t chunk = 65536 + 16;
    for (size_t at = 0; at < n_encrypted; at += at < 48 ? 1 : 4099) { /* written anew, so that the stamp is stale */
        encrypted[at] ^= 4;
        toy_write_file(&toy, shard_name, encrypted, n_encrypted);
        ellm_model *model = NULL;
        ellm_error error = {""};
        ellm_status status = open_model(true, &model, &error);
        CHECK(status == (at < 16 ? ELLM_BUNDLE_CORRUPT : ELLM_DECRYPTION_FAILED) && model == NULL);
        encrypted[at] ^= 4;
    }
    toy_write_file(&toy, shard_name, encrypted, n_encrypted - 1);
    EXPECT(true, BUNDLE_CORRUPT, shard_name);
    toy_write_file(&toy, shard_name, encrypted, n_encrypted - chunk);
    EXPECT(true, BUNDLE_CORRUPT, shard_name);
    /* Bytes changed in place while the stamp still fits (an old ctime cannot be had here, so it is written anew): the
     * chunks are authenticated whether files are hashed or not. */
    toy_write_file(&toy, shard_name, encrypted, n_encrypted);
    EXPECT(true, OK, "");
    encrypted[n_encrypted - 1] ^= 1;
    toy_write_file(&toy, shard_name, encrypted, n_encrypted);
    struct stat now;
    char path[512], stamp[512], digest[80];
    snprintf(path, sizeof path, "%s/manifest.sha256", toy.directory);
    digest[toy_read(path, digest, 64)] = '\0';
    snprintf(path, sizeof path, "%s/%s", toy.directory, shard_name);
    CHECK(stat(path, &now) == 0);
    int n = snprintf(stamp, sizeof stamp, "edgellm-verified 1 %.64s\n%llu %llu %llu %s\n", digest,
                     (unsigned long long)now.st_ino, (unsigned long long)now.st_size,
                     (unsigned long long)now.st_ctim.tv_sec * 1000000000u + (unsigned long long)now.st_ctim.tv_nsec,
                     shard_name);
    toy_write_file(&toy, ".verified", stamp, (size_t)n);
    EXPECT(true, DECRYPTION_FAILED, "weights/model.safetensors: its bytes were changed");
    encrypted[n_encrypted - 1] ^= 1;
    /* The right bytes of another file, under this one's name: the plain text's SHA-256 tells. */
    memcpy(other, encrypted, n_encrypted);
    toy_file *file = toy_find(&toy, shard_name);
    file->data[TOY_HEADER + 4] ^= 1;
    ellm_secret secret = read_key(7);
    encrypt_shard(&secret);
    file->data[TOY_HEADER + 4] ^= 1;
    EXPECT(true, BUNDLE_CORRUPT, "weights/model.safetensors: does not match its SHA-256");
    toy_write_file(&toy, shard_name, other, n_encrypted);
    EXPECT(true, OK, "");
    /* A file that need not be secret stays as it is. */
    const toy_file *plan = toy_find(&toy, "plan.json");
    uint64_t n_plan = ellm_encrypted_bytes(plan->bytes);
    toy_write_file(&toy, "plan.json", encrypted, (size_t)n_plan);
    EXPECT(true, BUNDLE_CORRUPT, "plan.json");
}

int main(void) {
    strcpy(folder, "/tmp/edgellm-secret-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        toy_die(folder);
    }
    snprintf(path_of_key, sizeof path_of_key, "%s/weights.key", folder);
    test_vector();
    test_file();
    test_keys();
    toy_open(&toy, 0);
    test_model();
    test_tampered();
    toy_close(&toy);
    unlink(path_of_key);
    rmdir(folder);
    return check_result();
}
