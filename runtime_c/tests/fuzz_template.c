/* A hostile chat.bin: opening and rendering must neither crash nor hang. */
#include <stdlib.h>
#include <string.h>

#include "template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char messages[] =
    "[{\"role\":\"system\",\"content\":\" S\xc3\xa9 \"},{\"role\":\"user\",\"content\":\"a b\\nc\"},"
    "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"123456789\",\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1."
    "5}}}]},"
    "{\"role\":\"tool\",\"content\":{\"ok\":[true,null,-7]},\"tool_call_id\":\"123456789\"}]";
static const char extra[] = "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"n\":3}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *file = malloc(size + 1);
    ellm_template *chat = NULL;
    ellm_error error;
    char out[1024];
    size_t n_bytes;
    if (file == NULL) {
        return 0;
    }
    if (size != 0) {
        memcpy(file, data, size);
    }
    if (size >= 12) {
        uint32_t declared = (uint32_t)size;
        memcpy(file + 8, &declared, sizeof declared);
    }
    if (ellm_template_open(file, size, &chat, &error) == ELLM_OK) {
        (void)ellm_template_render(chat, messages, extra, size % 2 == 0, out, sizeof out, &n_bytes, &error);
    }
    ellm_template_close(chat);
    free(file);
    return 0;
}
