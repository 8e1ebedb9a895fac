/* bench --bandwidth --device vulkan: how fast the GPU's memory is read, and what reaches it from the processor's. */
#include "program.h"

#ifdef ELLM_VULKAN
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "gpu.h"

static void put_rate(buffer *json, const char *what, const ellm_gpu_rate *rate) {
    buffer_print(json, ",\"%sgb_s\":%.3f,\"%slow_gb_s\":%.3f,\"%shigh_gb_s\":%.3f", what, rate->gb_s, what,
                 rate->low_gb_s, what, rate->high_gb_s);
}

static void put_way(buffer *text, const ellm_gpu_way *way) {
    buffer_print(text, "x%u of %u groups%s", (unsigned)way->loads, (unsigned)way->groups,
                 way->together ? " together" : "");
}

static void print_json(const ellm_gpu_bandwidth *b) {
    buffer json = {0};
    buffer_print(&json, "{\"device\":\"vulkan\",\"gpu\":");
    buffer_put_json(&json, b->name, strlen(b->name));
    buffer_print(&json, ",\"is_processor\":%s,\"one_memory\":%s,\"gpu_clock\":%s,\"buffer_bytes\":%llu",
                 b->is_processor ? "true" : "false", b->is_shared ? "true" : "false", b->has_clock ? "true" : "false",
                 (unsigned long long)b->bytes);
    put_rate(&json, "", &b->ways[b->fastest].rate);
    put_rate(&json, "copy_", &b->copy);
    put_rate(&json, "write_", &b->write);
    buffer_print(&json, ",\"fastest\":\"");
    put_way(&json, &b->ways[b->fastest]);
    buffer_print(&json, "\",\"loops_gb_s\":{");
    for (int i = 0; i < ELLM_GPU_WAYS; i++) {
        buffer_print(&json, i > 0 ? ",\"" : "\"");
        put_way(&json, &b->ways[i]);
        buffer_print(&json, "\":%.3f", b->ways[i].rate.gb_s);
    }
    printf("%s}}\n", json.data);
    buffer_free(&json);
}

ellm_status gpu_bandwidth_main(const settings *s, ellm_error *error) {
    ellm_gpu_bandwidth b;
    ellm_status status = ellm_gpu_measure(&b, error);
    if (status != ELLM_OK) {
        return status;
    }
    if (s->json) {
        print_json(&b);
        return ELLM_OK;
    }
    buffer way = {0};
    put_way(&way, &b.ways[b.fastest]);
    const ellm_gpu_rate *read = &b.ways[b.fastest].rate;
    printf("%s%s\n  it reads             %10.1f GB/s (%.1f to %.1f), the fastest way: %s%s\n", b.name,
           b.is_shared ? ", whose memory is the processor's" : "", read->gb_s, read->low_gb_s, read->high_gb_s,
           way.data, b.has_clock ? "" : "; it has no clock, this is what the processor's saw");
    printf("  it copies            %10.1f GB/s (%.1f to %.1f) of what the processor wrote\n", b.copy.gb_s,
           b.copy.low_gb_s, b.copy.high_gb_s);
    if (b.write.gb_s > 0) {
        printf("  a thread writes      %10.1f GB/s straight into its memory\n", b.write.gb_s);
    }
    buffer_free(&way);
    return ELLM_OK;
}
#endif
