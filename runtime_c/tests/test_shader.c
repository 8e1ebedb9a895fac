/* kernels.spv: a good file, and every way to be a bad one. */
#include <string.h>

#include "check.h"
#include "error.h"
#include "shader.h"

enum { module_words = 24 };

/* A file with one kernel "k" whose module has one entry point, one buffer and a workgroup of 8. */
typedef struct image {
    uint32_t words[8 + 1 + module_words];
} image;

static image good(void) {
    image made = {{0}};
    uint32_t *w = made.words;
    memcpy(w, "ELLMSPV1", 8);
    w[2] = 1;
    w[4] = 32; /* name */
    w[5] = 1;
    w[6] = 36; /* code */
    w[7] = 4 * module_words;
    memcpy(&w[8], "k", 2);
    static const uint32_t module[module_words] = {
        0x07230203,
        0x00010300,
        0,
        20,
        0, /* head */
        2u << 16 | 17,
        1, /* OpCapability Shader */
        5u << 16 | 15,
        5,
        1,
        0x6e69616d,
        0, /* OpEntryPoint GLCompute "main" */
        6u << 16 | 16,
        1,
        17,
        8,
        1,
        1, /* OpExecutionMode LocalSize */
        4u << 16 | 71,
        2,
        33,
        0, /* OpDecorate Binding 0 */
        1u << 16 | 253,
        1u << 16 | 56, /* OpReturn, OpFunctionEnd */
    };
    memcpy(&w[9], module, sizeof module);
    return made;
}

static ellm_status read(const image *file, size_t n_bytes, ellm_shaders *shaders, ellm_region *region) {
    ellm_error error = {.text = ""};
    ellm_region_init(region, 1 << 20);
    ellm_status status = ellm_shaders_read((const uint8_t *)file->words, n_bytes, region, shaders, &error);
    if (status != ELLM_OK) {
        CHECK(strstr(error.text, "kernels.spv") != NULL);
        CHECK(strstr(error.text, "compile the bundle again") != NULL);
    }
    return status;
}

static void refused(uint32_t word, uint32_t value) {
    image file = good();
    file.words[word] = value;
    ellm_shaders shaders;
    ellm_region region;
    CHECK(read(&file, sizeof file, &shaders, &region) == ELLM_KERNEL_INVALID);
    ellm_region_free(&region);
}

int main(void) {
    image file = good();
    ellm_shaders shaders;
    ellm_region region;
    CHECK(read(&file, sizeof file, &shaders, &region) == ELLM_OK);
    const ellm_shader *shader = ellm_shaders_find(&shaders, "k");
    CHECK(shader != NULL && shader->n_bindings == 1 && shader->local[0] == 8 && shader->needs == 0);
    CHECK(ellm_shaders_find(&shaders, "j") == NULL);
    ellm_region_free(&region);

    for (size_t n = 0; n < sizeof file; n += 4) { /* cut off anywhere */
        CHECK(read(&file, n, &shaders, &region) == ELLM_KERNEL_INVALID);
        ellm_region_free(&region);
    }
    refused(0, 0); /* magic */
    refused(2, 0); /* no kernel */
    refused(2, 2); /* a table longer than the file, or an entry of rubbish */
    refused(2, 0xffffffff);
    refused(4, 0xfffffff0); /* a name outside */
    refused(5, 0);          /* an empty name */
    refused(5, 0xffffffff);
    refused(6, 0xfffffffc); /* code outside */
    refused(6, 37);         /* not aligned */
    refused(7, 0xfffffffc);
    refused(7, 8);                   /* too short for a head */
    refused(9, 0x07230204);          /* no SPIR-V */
    refused(10, 0x00010400);         /* too new */
    refused(14, 0);                  /* an instruction of no length */
    refused(14, 0xffffu << 16 | 17); /* one longer than the module */
    refused(15, 5);                  /* another capability */
    refused(17, 4);                  /* no compute shader */
    refused(19, 0x6e69616e);         /* not main */
    refused(24, 0);                  /* a workgroup of nothing */
    refused(24, 0xffffffff);
    refused(25, 1024); /* of too many */
    refused(30, 64);   /* too many buffers */
    return check_result();
}
