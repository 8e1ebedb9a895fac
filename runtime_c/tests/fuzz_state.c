/* Fuzzes saved sessions. The input: a byte whose bits make the checksum right and the bundle this one, for few files would
 * be read further; two that say how much data there is, in 64 bytes; the header, a new line, and how the data begins. What
 * is found good is restored, and saved once more. */
#include "posix.h"

#include <sys/mman.h>

#include "edgellm.h"
#include "model.h"
#include "toy.h"

enum { head_bytes = 65536, most_data = 65536, digest_bytes = 64, most_tokens = 300 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static struct toy toy;
static ellm_model *model;
static ellm_context *context;
static int file;
static char path[32], copy[64];
static uint8_t saved[head_bytes + most_data];

static void must(ellm_status status, const ellm_error *error) {
    if (status != ELLM_OK) {
        fprintf(stderr, "%s\n", error->text);
        exit(99);
    }
}

static void remove_copy(void) {
    unlink(copy);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    ellm_error error = {""};
    ellm_context_options options = {
        .n_sessions = 2, .context_length = most_tokens, .n_threads_prefill = 1, .n_threads_decode = 1};
    toy_open(&toy, 0);
    toy_compile(&toy, toy_kernels, "-DWINDOW=0 -DADD==");
    toy_write(&toy);
    must(ellm_model_open(toy.directory, &model, &error), &error);
    must(ellm_context_open(model, &options, &context, &error), &error);
    toy_close(&toy); /* it is mapped */
    file = memfd_create("session", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    snprintf(copy, sizeof copy, "/tmp/edgellm-fuzz-state-%d", (int)getpid());
    atexit(remove_copy);
    return file >= 0 ? 0 : 99;
}

/* The file that an input stands for; returns its size. */
static size_t build(const uint8_t *data, size_t n_bytes) {
    size_t n_data = (data[1] | (size_t)data[2] << 8) % (most_data / 64 + 1) * 64, at = 3;
    const uint64_t length = head_bytes - 8;
    memset(saved, ' ', head_bytes);
    memset(saved + head_bytes, 0, most_data);
    memcpy(saved, &length, 8);
    for (size_t i = 8; at < n_bytes && data[at] != '\n' && i < head_bytes; i++, at++) {
        saved[i] = data[at];
    }
    at += at < n_bytes;
    memcpy(saved + head_bytes, data + at, n_bytes - at < n_data ? n_bytes - at : n_data);
    size_t n = head_bytes + n_data;
    if ((data[0] & 2) != 0 && n_data >= 2 * digest_bytes) { /* where a saved session names its bundle */
        memcpy(saved + head_bytes + digest_bytes, ellm_model_sha256(model), digest_bytes);
    }
    if ((data[0] & 1) != 0 && n_data >= digest_bytes) {
        char hex[65];
        ellm_sha256 sha;
        ellm_sha256_init(&sha);
        ellm_sha256_update(&sha, saved, head_bytes);
        ellm_sha256_update(&sha, saved + head_bytes + digest_bytes, n_data - digest_bytes);
        ellm_sha256_hex(&sha, hex);
        memcpy(saved + head_bytes, hex, digest_bytes);
    }
    return n;
}

/* What was restored is saved, and is the same again. */
static void check_again(const ellm_saved *first, const int32_t *tokens, size_t n) {
    const int32_t *again;
    size_t n_note, n_other;
    const void *note = ellm_saved_note(first, &n_note);
    ellm_saved *other = NULL;
    ellm_error error = {""};
    must(ellm_session_save(context, 1, tokens, copy, note, n_note, &error), &error);
    must(ellm_saved_open(model, copy, &other, &error), &error);
    const void *same = ellm_saved_note(other, &n_other);
    if (ellm_saved_tokens(other, &again) != n || memcmp(again, tokens, n * sizeof *again) != 0 || n_other != n_note
        || (n_note > 0 && memcmp(note, same, n_note) != 0)) {
        abort();
    }
    ellm_saved_close(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 3) {
        return 0;
    }
    size_t n = build(data, n_bytes), n_tokens;
    ellm_saved *one = NULL;
    const int32_t *tokens;
    if (ftruncate(file, 0) != 0 || pwrite(file, saved, n, 0) != (ssize_t)n) {
        abort();
    }
    if (ellm_saved_open(model, path, &one, NULL) == ELLM_OK) {
        n_tokens = ellm_saved_tokens(one, &tokens);
        ellm_status status = ellm_session_restore(context, 1, one);
        if (status == ELLM_OK ? (size_t)ellm_session_length(context, 1) != n_tokens
                              : n_tokens > 0 && n_tokens <= most_tokens) {
            abort();
        }
        if (status == ELLM_OK) {
            check_again(one, tokens, n_tokens);
        }
    }
    ellm_saved_close(one);
    return 0;
}
