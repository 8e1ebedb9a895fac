/* golden: the manifest's prompts must give exactly the manifest's tokens. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine.h"
#include "golden_gpu.h"
#include "json.h"

enum { region_limit = 64 << 20 };

/* An array of ids; USAGE-free: what is wrong with it is the bundle's fault. */
static ellm_status read_ids(const ellm_json *array, int32_t **ids, size_t *n, ellm_error *error) {
    *n = 0;
    *ids = NULL;
    if (array == NULL || array->kind != ELLM_JSON_ARRAY || array->count == 0) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: golden: prompt and tokens are lists of ids");
    }
    *ids = calloc(array->count, sizeof **ids);
    if (*ids == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "a golden prompt of %u tokens", array->count);
    }
    for (const ellm_json *each = array->first; each != NULL; each = each->next) {
        int64_t id;
        if (!ellm_json_int(each, 0, INT32_MAX, &id)) {
            return ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: golden: %zu. id is no id", *n + 1);
        }
        (*ids)[(*n)++] = (int32_t)id;
    }
    return ELLM_OK;
}

static ellm_status check(engine *e, const settings *s, const ellm_json *entry, unsigned number, size_t *n_checked,
                         ellm_error *error) {
    int32_t *prompt = NULL, *tokens = NULL;
    size_t n_prompt, n_tokens;
    answer a = {0};
    ellm_status status = read_ids(ellm_json_get(entry, "prompt"), &prompt, &n_prompt, error);
    if (status == ELLM_OK) {
        status = read_ids(ellm_json_get(entry, "tokens"), &tokens, &n_tokens, error);
    }
    if (status == ELLM_OK) {
        answer_request request = {.prompt = prompt,
                                  .n_prompt = n_prompt,
                                  .most_tokens = (int64_t)n_tokens,
                                  .ignore_stop = true,
                                  .sampling = engine_sampling(e, s)};
        request.sampling.temperature = 0;
        status = engine_answer(e, &request, &a, error);
        for (size_t i = 0; status == ELLM_OK && i < n_tokens; i++) {
            if (i >= a.n_ids) {
                status = ellm_fail(error, ELLM_CANCELLED, "golden prompt %u: only %zu of %zu tokens", number, a.n_ids,
                                   n_tokens);
            } else if (a.ids[i] != tokens[i]) {
                status =
                    ellm_fail(error, ELLM_KERNEL_FAILED,
                              "golden prompt %u: token %zu is %d instead of %d; this machine computes differently: "
                              "trust no answer, compile and deploy again, and report it if that does not help",
                              number, i + 1, (int)a.ids[i], (int)tokens[i]);
            }
        }
        *n_checked += n_tokens;
    }
    free(prompt);
    free(tokens);
    free(a.ids);
    return status;
}

ellm_status golden_main(const settings *s, ellm_error *error) {
    engine e;
    ellm_region region;
    ellm_region_init(&region, region_limit);
    ellm_json *manifest = NULL;
    size_t n_checked = 0;
    unsigned number = 0;
    double start = clock_ms();
    interrupts_catch();
#ifdef ELLM_VULKAN
    bool is_gpus;
    ellm_status judged = golden_gpu(s, &is_gpus, error);
    if (judged != ELLM_OK || is_gpus) {
        return judged;
    }
#endif
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK) {
        status = ellm_json_read(e.info.manifest, e.info.manifest_bytes, &region, ELLM_BUNDLE_FORMAT, "manifest.json",
                                &manifest, error);
    }
    const ellm_json *golden = status == ELLM_OK ? ellm_json_get(manifest, "golden") : NULL;
    if (golden != NULL && golden->kind == ELLM_JSON_ARRAY) {
        for (const ellm_json *entry = golden->first; status == ELLM_OK && entry != NULL; entry = entry->next) {
            status = check(&e, s, entry, ++number, &n_checked, error);
        }
    }
    if (status == ELLM_OK && s->json) {
        printf("{\"golden\":true,\"prompts\":%u,\"tokens\":%zu,\"ms\":%.1f}\n", number, n_checked, clock_ms() - start);
    } else if (status == ELLM_OK) {
        printf("%u golden prompts, %zu tokens: all as they should be\n", number, n_checked);
    }
    ellm_region_free(&region);
    engine_close(&e);
    return status;
}
