#include "signature.h"

#include <string.h>

#include "error.h"
#include "monocypher-ed25519.h"

/* A line of manifest.sig is "ed25519 <public key> <signature>\n", one of the pinned keys "ed25519 <public key> name\n",
 * both in lower-case hexadecimal digits: whether a key is pinned is whether their first 72 characters are the same. */
enum { key_bytes = 32, signature_bytes = 64, algorithm_length = 8, named = algorithm_length + 2 * key_bytes };
enum { line_length = named + 1 + 2 * signature_bytes + 1 };

static const char algorithm[] = "ed25519 ";

/* Decodes n bytes; false if they are not all digits. */
static bool decode(const char *text, uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < 2 * n; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) {
            return false;
        }
        bytes[i / 2] = (uint8_t)(bytes[i / 2] << 4 | digit);
    }
    return true;
}

static bool is_pinned(const char *line, const char *pinned, const char *end) {
    for (const char *next; end - pinned > named; pinned = next + 1) {
        next = memchr(pinned, '\n', (size_t)(end - pinned));
        if (memcmp(pinned, line, named) == 0 && (pinned[named] == ' ' || pinned[named] == '\n')) {
            return true;
        }
        if (next == NULL) {
            break;
        }
    }
    return false;
}

/* Checks one line. UNTRUSTED: by another key. */
static ellm_status check_line(const char *line, const char *pinned, const char *pinned_end, const void *manifest,
                              size_t manifest_bytes) {
    /* A key of small order accepts every message: for it, the equation holds with R neutral and S = 0. */
    static const uint8_t neutral[signature_bytes] = {1};
    uint8_t key[key_bytes] = {0}, signature[signature_bytes] = {0};
    if (memcmp(line, algorithm, algorithm_length) != 0 || !decode(line + algorithm_length, key, key_bytes)
        || line[named] != ' ' || !decode(line + named + 1, signature, signature_bytes)
        || line[line_length - 1] != '\n') {
        return ELLM_SIGNATURE_INVALID;
    }
    if (!is_pinned(line, pinned, pinned_end)) {
        return ELLM_SIGNATURE_UNTRUSTED;
    }
    if (crypto_ed25519_check(neutral, key, NULL, 0) == 0) {
        return ELLM_KEY_INVALID;
    }
    return crypto_ed25519_check(signature, key, manifest, manifest_bytes) == 0 ? ELLM_OK : ELLM_SIGNATURE_INVALID;
}

ellm_status ellm_signature_check(const char *signatures, size_t n_signatures, const char *pinned, size_t n_pinned,
                                 const void *manifest, size_t manifest_bytes, ellm_error *error) {
    enum { most_lines = 16 };
    if (n_pinned <= named || memcmp(pinned, algorithm, algorithm_length) != 0) {
        return ellm_fail(error, ELLM_KEY_INVALID,
                         "trusted_keys: not lines \"ed25519 <public key> name\"; pin keys again "
                         "with `edgellm trust`");
    }
    ellm_status status = n_signatures == 0 ? ELLM_SIGNATURE_MISSING : ELLM_SIGNATURE_INVALID;
    if (n_signatures % line_length == 0 && n_signatures <= most_lines * line_length) {
        for (size_t at = 0; at < n_signatures; at += line_length) {
            status = check_line(signatures + at, pinned, pinned + n_pinned, manifest, manifest_bytes);
            if (status != ELLM_SIGNATURE_UNTRUSTED) {
                break;
            }
        }
    }
    return status == ELLM_OK
               ? status
               : ellm_fail(error, status, "manifest.sig: %s; sign with key %.16s, or pin another with `edgellm trust`",
                           ellm_status_text(status), pinned + algorithm_length);
}
