#include "posix.h"

#include "golden_text.h"

#ifdef ELLM_VULKAN

#include <math.h>

#include "json.h"

enum { beyond_step = 22 }; /* rows of the long prompt behind those of the largest function */

int32_t golden_id(size_t k, int32_t vocab) {
    return (int32_t)(7919 * (int64_t)(k + 1) % vocab);
}

ellm_status golden_no_memory(ellm_error *error) {
    return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the golden prompts");
}

/* The manifest's ids, which were checked when it was opened. */
static int32_t *read_ids(const ellm_json *list, ellm_region *region, size_t *n) {
    int32_t *ids = ellm_region_alloc(region, list->count, sizeof *ids);
    *n = 0;
    for (const ellm_json *id = list->first; id != NULL && ids != NULL; id = id->next) {
        ids[(*n)++] = (int32_t)id->integer;
    }
    return ids;
}

static ellm_status read_logits(const ellm_json *rows, ellm_region *region, golden_text *text, ellm_error *error) {
    float *to = text->logits = ellm_region_alloc(region, text->n_tokens * golden_compared, sizeof *to);
    const float *end = to == NULL ? NULL : to + text->n_tokens * golden_compared;
    bool good = rows->kind == ELLM_JSON_ARRAY;
    for (const ellm_json *row = good ? rows->first : NULL; row != NULL && good && to != NULL; row = row->next) {
        good = row->kind == ELLM_JSON_ARRAY && row->count == golden_compared && to < end;
        for (const ellm_json *each = good ? row->first : NULL; each != NULL && good; each = each->next) {
            double value = 0;
            good = ellm_json_real(each, &value) && isfinite((float)value);
            *to++ = (float)value;
        }
    }
    if (end == NULL) {
        return golden_no_memory(error);
    }
    return good && to == end ? ELLM_OK
                             : ellm_fail(error, ELLM_BUNDLE_FORMAT,
                                         "manifest.json: golden: logits: not %d numbers for each of tokens; compile "
                                         "the bundle again",
                                         golden_compared);
}

ellm_status golden_texts_read(const ellm_bundle *bundle, ellm_region *region, golden_text **texts, size_t *n,
                              ellm_error *error) {
    ellm_json *manifest = NULL;
    ellm_status status =
        ellm_json_read(bundle->text, bundle->text_bytes, region, ELLM_BUNDLE_FORMAT, "manifest.json", &manifest, error);
    const ellm_json *golden = status == ELLM_OK ? ellm_json_get(manifest, "golden") : NULL;
    *n = 0;
    *texts = golden != NULL ? ellm_region_alloc(region, (size_t)golden->count + 1, sizeof **texts) : NULL;
    if (status == ELLM_OK && *texts == NULL) {
        return golden_no_memory(error);
    }
    for (const ellm_json *entry = golden != NULL ? golden->first : NULL; status == ELLM_OK && entry != NULL;
         entry = entry->next) {
        const ellm_json *logits = ellm_json_get(entry, "logits");
        golden_text *text = &(*texts)[(*n)++];
        text->prompt = read_ids(ellm_json_get(entry, "prompt"), region, &text->n_prompt);
        text->tokens = read_ids(ellm_json_get(entry, "tokens"), region, &text->n_tokens);
        if (text->prompt == NULL || text->tokens == NULL) {
            status = golden_no_memory(error);
        } else if (text->n_prompt == 0 || text->n_tokens == 0) {
            status = ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: golden: prompt and tokens are lists of ids");
        } else if (logits != NULL) {
            status = read_logits(logits, region, text, error);
        }
    }
    return status;
}

ellm_status golden_text_make(const ellm_model_info *info, ellm_region *region, golden_text *text, ellm_error *error) {
    size_t most = (size_t)info->context_length, n = (size_t)info->step_rows + beyond_step;
    *text = (golden_text){.n_tokens = most > 2 * golden_long_tokens ? golden_long_tokens : 1};
    text->n_prompt = n + text->n_tokens <= most ? n : most > text->n_tokens ? most - text->n_tokens : 1;
    int32_t *prompt = ellm_region_alloc(region, text->n_prompt, sizeof *prompt);
    text->tokens = ellm_region_alloc(region, text->n_tokens, sizeof *text->tokens);
    for (size_t i = 0; prompt != NULL && i < text->n_prompt; i++) {
        prompt[i] = golden_id(i + golden_spread, info->vocab_size); /* not as another golden prompt begins */
    }
    text->prompt = prompt;
    return prompt != NULL && text->tokens != NULL ? ELLM_OK : golden_no_memory(error);
}

#else
typedef int golden_text_none; /* ISO C forbids an empty file */
#endif
