/* States in files: a prefix that a bundle ships, and sessions that are saved and taken up again. The toy model's logits tell
 * whether every position is what it was. */
#include "posix.h"

#include "check.h"
#include "edgellm.h"
#include "toy.h"

enum { n_tokens = 190, n_prefix = 140 };

static int32_t tokens[n_tokens];

/* The logits of the last of n tokens, computed from nothing or behind what the session holds. */
static void finish(ellm_context *context, int32_t slot, size_t n, float *logits) {
    size_t held = (size_t)ellm_session_length(context, slot);
    CHECK(ellm_session_eval(context, slot, tokens + held, n - held, logits) == ELLM_OK);
}

static void path_in(const struct toy *toy, const char *name, char path[128]) {
    snprintf(path, 128, "%s/%s", toy->directory, name);
}

/* Saves a session of `length` tokens to a file. */
static void save(const struct toy *toy, const char *name, int32_t length, const char *note) {
    char path[128];
    ellm_error error = {""};
    ellm_model *model = toy_model(toy);
    ellm_context *context = toy_context(model, 1, 0);
    path_in(toy, name, path);
    CHECK_STATUS(ellm_session_save(context, 0, tokens, path, NULL, 0, &error), ELLM_USAGE, error, "nothing to save");
    float logits[TOY_VOCAB];
    CHECK(ellm_session_eval(context, 0, tokens, (size_t)length, logits) == ELLM_OK);
    CHECK_STATUS(ellm_session_save(context, 0, tokens, path, note, strlen(note), &error), ELLM_OK, error, "");
    ellm_context_close(context);
    ellm_model_close(model);
}

/* Ships what `name` holds as the toy's prefix. */
static void ship(struct toy *toy, const char *name) {
    static char data[1 << 20];
    char path[128];
    path_in(toy, name, path);
    size_t n = toy_read(path, data, sizeof data);
    toy_set(toy, "weights/prefix.safetensors", data, n);
    toy_replace(toy, "manifest.json", "\"provenance\":{}",
                "\"prefix\":{\"file\":\"weights/prefix.safetensors\",\"system\":\"Be brief.\"},\"provenance\":{}");
    toy_write(toy);
}

static void test_prefix(int window) {
    struct toy toy;
    float right[TOY_VOCAB], logits[TOY_VOCAB];
    toy_open(&toy, window);
    toy_write(&toy);
    save(&toy, "state", n_prefix, "");
    ship(&toy, "state");
    ellm_model *model = toy_model(&toy);
    const int32_t *shipped;
    CHECK(ellm_model_prefix_tokens(model, &shipped) == n_prefix && memcmp(shipped, tokens, n_prefix * 4) == 0);
    CHECK(strcmp(ellm_model_system(model), "Be brief.") == 0);
    ellm_context *context = toy_context(model, 3, 300);
    finish(context, 0, n_tokens, right);
    for (int round = 0; round < 3;
         round++) { /* writing behind it, in a copy of its last block, changes it for nobody */
        for (int32_t slot = 1; slot < 3; slot++) {
            CHECK(ellm_session_share(context, ELLM_PREFIX, slot, n_prefix) == ELLM_OK);
            CHECK(ellm_session_length(context, slot) == n_prefix);
            finish(context, slot, n_tokens, logits);
            CHECK(memcmp(logits, right, sizeof right) == 0);
        }
    }
    bool partly = ellm_session_share(context, ELLM_PREFIX, 1, 90) == ELLM_OK;
    CHECK(partly == (window == 0)); /* a window has closed over what 90 would show */
    CHECK(ellm_session_length(context, 1) == (partly ? 90 : n_tokens));
    if (partly) { /* the toy adds to what is there: in place of position 90, too */
        CHECK(ellm_session_share(context, ELLM_PREFIX, 1, 64) == ELLM_OK);
        finish(context, 1, n_tokens, logits);
        CHECK(memcmp(logits, right, sizeof right) == 0);
    }
    CHECK(ellm_session_share(context, ELLM_PREFIX, 1, n_prefix + 1) == ELLM_USAGE);
    CHECK(ellm_session_share(context, 0, ELLM_PREFIX, 1) == ELLM_USAGE);
    CHECK(ellm_session_share(context, 3, 1, 1) == ELLM_USAGE); /* where the prefix lies is nobody's business */
    CHECK(ellm_session_length(context, 3) == 0);
    ellm_context_close(context);
    context = toy_context(model, 1, 70); /* shorter than the prefix */
    CHECK(ellm_session_share(context, ELLM_PREFIX, 0, 71) == ELLM_USAGE);
    CHECK((ellm_session_share(context, ELLM_PREFIX, 0, 64) == ELLM_OK) == (window == 0));
    ellm_context_close(context);
    ellm_model_close(model);
    toy_close(&toy);
}

static void test_bad_prefix(void) {
    static const struct {
        const char *path, *from, *to, *part;
    } changes[] = {
        {"manifest.json", "prefix.safetensors\",\"system", "other.safetensors\",\"system", "prefix.file must be"},
        {"manifest.json", "\"system\":\"Be brief.\"", "\"system\":7", "prefix.system must be"},
        {"weights/prefix.safetensors", "kv.tokens", "kv.ids", "kv.tokens"},
        {"weights/prefix.safetensors", "\"kv.0\"", "\"kv.7\"", "kv.0 must have 768 bytes"},
        {"weights/prefix.safetensors", "[3,256]", "[1,768]", ""}, /* another way to say the same */
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct toy toy;
        ellm_error error = {""};
        ellm_model *model = NULL;
        toy_open(&toy, 0);
        toy_write(&toy);
        save(&toy, "state", n_prefix, "");
        ship(&toy, "state");
        toy_replace(&toy, changes[i].path, changes[i].from, changes[i].to);
        toy_write(&toy);
        CHECK_STATUS(ellm_model_open(toy.directory, &model, &error),
                     changes[i].part[0] == '\0' ? ELLM_OK : ELLM_BUNDLE_FORMAT, error, changes[i].part);
        ellm_model_close(model);
        toy_close(&toy);
    }
}

static void test_tokens_outside(void) {
    struct toy toy;
    ellm_error error = {""};
    ellm_model *model = NULL;
    toy_open(&toy, 0);
    toy_write(&toy);
    save(&toy, "state", n_prefix, "");
    ship(&toy, "state");
    toy_file *file = toy_find(&toy, "weights/prefix.safetensors");
    file->data[65536 + 128 + 4 * 7] = 99; /* kv.sum, kv.bundle, kv.tokens */
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_BUNDLE_FORMAT, error, "token 7 is not in");
    toy_close(&toy);
}

static void test_saved(int window) {
    struct toy toy;
    char path[128];
    float right[TOY_VOCAB], logits[TOY_VOCAB];
    ellm_error error = {""};
    toy_open(&toy, window);
    toy_write(&toy);
    save(&toy, "saved", n_prefix, "what was said");
    path_in(&toy, "saved", path);
    ellm_model *model = toy_model(&toy);
    ellm_context *context = toy_context(model, 2, 300);
    ellm_saved *saved = NULL;
    const int32_t *ids;
    size_t n_note;
    finish(context, 0, n_tokens, right);
    CHECK_STATUS(ellm_saved_open(model, path, &saved, &error), ELLM_OK, error, "");
    CHECK(ellm_saved_tokens(saved, &ids) == n_prefix && memcmp(ids, tokens, n_prefix * 4) == 0);
    CHECK(memcmp(ellm_saved_note(saved, &n_note), "what was said", 13) == 0 && n_note == 13);
    CHECK(ellm_session_restore(context, 1, saved) == ELLM_OK && ellm_session_restore(context, 0, saved) == ELLM_OK);
    CHECK(ellm_session_restore(context, 2, saved) == ELLM_USAGE);
    for (int32_t slot = 0; slot < 2; slot++) {
        finish(context, slot, n_tokens, logits);
        CHECK(memcmp(logits, right, sizeof right) == 0);
    }
    ellm_context_close(context);
    context = toy_context(model, 1, 70);
    CHECK(ellm_session_restore(context, 0, saved) == ELLM_CONTEXT_FULL && ellm_session_length(context, 0) == 0);
    ellm_context_close(context);
    ellm_saved_close(saved);
    ellm_model_close(model);
    toy_replace(&toy, "manifest.json", "\"parameters\":32", "\"parameters\":33"); /* another bundle */
    toy_write(&toy);
    model = toy_model(&toy);
    context = toy_context(model, 1, 300);
    CHECK_STATUS(ellm_saved_open(model, path, &saved, &error), ELLM_OK, error, "");
    CHECK(ellm_saved_tokens(saved, &ids) == 0 && ellm_session_restore(context, 0, saved) == ELLM_USAGE);
    CHECK(memcmp(ellm_saved_note(saved, &n_note), "what was said", 13) == 0 && n_note == 13);
    ellm_saved_close(saved);
    ellm_context_close(context);
    ellm_model_close(model);
    toy_close(&toy);
}

/* Every byte counts, and every length is checked. */
static void test_damaged(void) {
    static char data[1 << 20];
    struct toy toy;
    char path[128];
    ellm_saved *saved = NULL;
    ellm_error error = {""};
    toy_open(&toy, 0);
    toy_write(&toy);
    save(&toy, "saved", n_prefix, "x");
    path_in(&toy, "saved", path);
    size_t n = toy_read(path, data, sizeof data);
    ellm_model *model = toy_model(&toy);
    int n_taken = 0;
    for (size_t at = 0; at < n; at += at < 1200 ? 1 : at < 65536 ? 4999 : 97) {
        data[at] = (char)(data[at] ^ 1);
        toy_write_file(&toy, "saved", data, n);
        n_taken += ellm_saved_open(model, path, &saved, NULL) == ELLM_OK;
        CHECK(saved == NULL);
        data[at] = (char)(data[at] ^ 1);
    }
    for (size_t length = 0; length < n; length += length < 16 ? 1 : 3001) {
        toy_write_file(&toy, "saved", data, length);
        n_taken += ellm_saved_open(model, path, &saved, NULL) == ELLM_OK;
    }
    CHECK(n_taken == 0);
    CHECK_STATUS(ellm_saved_open(model, path, &saved, &error), ELLM_SESSION_INVALID, error, "remove it");
    unlink(path);
    CHECK_STATUS(ellm_saved_open(model, path, &saved, &error), ELLM_BUNDLE_MISSING, error, "saved");
    ellm_model_close(model);
    toy_close(&toy);
}

int main(void) {
    for (int i = 0; i < n_tokens; i++) {
        tokens[i] = (i * 5 + 3) % 31;
    }
    test_prefix(0);
    test_prefix(70);
    test_bad_prefix();
    test_tokens_outside();
    test_saved(0);
    test_saved(70);
    test_damaged();
    return check_result();
}
