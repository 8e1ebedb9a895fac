/* The public text functions: thin over the tokenizer and the chat template of a model. */
#include "error.h"
#include "model.h"
#include "template.h"
#include "tokenizer.h"

ellm_status ellm_encode(const ellm_model *model, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                        int32_t *tokens, size_t cap, size_t *n_tokens) {
    return ellm_tokenizer_encode(ellm_model_tokenizer(model), text, n_bytes, add_special, parse_special, tokens, cap,
                                 n_tokens);
}

ellm_status ellm_decode(const ellm_model *model, const int32_t *tokens, size_t n_tokens, bool skip_special, char *text,
                        size_t cap, size_t *n_bytes) {
    return ellm_tokenizer_decode(ellm_model_tokenizer(model), tokens, n_tokens, skip_special, text, cap, n_bytes);
}

ellm_status ellm_stream_push(const ellm_model *model, ellm_stream *stream, int32_t token, char *text, size_t cap,
                             size_t *n_bytes) {
    return ellm_tokenizer_push(ellm_model_tokenizer(model), stream, token, text, cap, n_bytes);
}

ellm_status ellm_stream_flush(const ellm_model *model, ellm_stream *stream, char *text, size_t cap, size_t *n_bytes) {
    return ellm_tokenizer_flush(ellm_model_tokenizer(model), stream, text, cap, n_bytes);
}

ellm_status ellm_chat_render(const ellm_model *model, const char *messages_json, const char *extra_json,
                             bool add_generation_prompt, char *text, size_t cap, size_t *n_bytes, ellm_error *error) {
    const ellm_template *chat = ellm_model_template(model);
    if (chat == NULL) {
        *n_bytes = 0;
        return ellm_fail(error, ELLM_BUNDLE_MISSING, "the bundle has no chat.bin: the model has no chat template");
    }
    return ellm_template_render(chat, messages_json, extra_json, add_generation_prompt, text, cap, n_bytes, error);
}
