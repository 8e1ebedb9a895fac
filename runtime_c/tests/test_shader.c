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

/* The file whose module asks for this capability, with byte 12 and a workgroup as given. */
static image asking(uint32_t capability, uint32_t matrices, uint32_t local) {
    image file = good();
    file.words[15] = capability;
    file.words[3] = matrices;
    file.words[24] = local;
    return file;
}

static void needed(uint32_t capability, uint32_t needs) {
    const image file = asking(capability, 0x0804, 8);
    ellm_shaders shaders;
    ellm_region region;
    CHECK(read(&file, sizeof file, &shaders, &region) == ELLM_OK);
    CHECK(shaders.all[0].needs == (0x08040000 | needs));
    ellm_region_free(&region);
}

static bool is_possible(uint32_t subgroup, uint32_t local) {
    return subgroup != 0 && (subgroup & (subgroup - 1)) == 0 && local % subgroup == 0;
}

/* Byte 12, which untrusted files have as they like: what a driver is asked for is a power of two, and whole. */
static void matrices(uint32_t local) {
    for (uint32_t value = 0; value <= 0xffff; value++) {
        const image file = asking(6022, value, local), other = asking(61, value, local);
        ellm_shaders shaders;
        ellm_region region;
        const bool good = is_possible(value & 255, local);
        CHECK(read(&file, sizeof file, &shaders, &region) == (good ? ELLM_OK : ELLM_KERNEL_INVALID));
        CHECK(!good || shaders.all[0].needs == (value << 16 | ELLM_NEEDS_MATRIX));
        ellm_region_free(&region);
        CHECK(read(&other, sizeof other, &shaders, &region) == ELLM_OK); /* it has no matrices */
        ellm_region_free(&region);
    }
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
    needed(1, 0);
    needed(9, ELLM_NEEDS_MATRIX);
    needed(61, ELLM_NEEDS_GROUP);
    needed(63, ELLM_NEEDS_GROUP | ELLM_NEEDS_SUMS);
    needed(4433, ELLM_NEEDS_16BIT);
    needed(4448, ELLM_NEEDS_8BIT);
    needed(5345, ELLM_NEEDS_MATRIX);
    needed(6018, ELLM_NEEDS_DOT);
    needed(6019, ELLM_NEEDS_DOT);
    needed(6022, ELLM_NEEDS_MATRIX);
    matrices(8);
    matrices(96);
    matrices(1024);

    refused(0, 0); /* magic */
    refused(3, 0x10000);
    refused(3, 0xffffffff);
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
