/*
 * The object tree.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/object.h"

struct lamp {
    struct object object;
    bool on;
    int64_t colour;
    uint64_t hours;
};

static struct lamp *lamp_of(const struct object *object)
{
    return container_of(object, struct lamp, object);
}

static int lamp_get_on(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = lamp_of(object)->on};
    return 0;
}

static int lamp_set_on(struct object *object, const struct object_value *value, struct error *err)
{
    (void)err;
    lamp_of(object)->on = value->boolean;
    return 0;
}

static int lamp_get_colour(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_INT, .integer = lamp_of(object)->colour};
    return 0;
}

static int lamp_set_colour(struct object *object, const struct object_value *value, struct error *err)
{
    if (value->integer < 0)
        return error_set(err, -ERANGE, "colour must not be negative");
    lamp_of(object)->colour = value->integer;
    return 0;
}

static int lamp_get_hours(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = lamp_of(object)->hours};
    return 0;
}

static int lamp_get_maker(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_STRING, .string = memory_format("maker of %s", object->name)};
    return 0;
}

static const struct object_property lamp_properties[] = {
    {"on", "bool", lamp_get_on, lamp_set_on},
    {"colour", "int", lamp_get_colour, lamp_set_colour},
    {"hours", "uint64", lamp_get_hours, NULL},
    {"maker", "string", lamp_get_maker, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct object_type lamp_type = {.name = "lamp", .properties = lamp_properties};
static const struct object_type bare_type = {.name = "bare"};

static void assert_error(struct error *err, enum error_class class, int code, const char *text)
{
    ck_assert_int_eq(err->class, class);
    ck_assert_int_eq(err->code, code);
    ck_assert_str_eq(err->text, text);
    error_clear(err);
}

START_TEST(containers)
{
    struct object *lamps = object_container("lamps");

    ck_assert_ptr_eq(object_container("lamps"), lamps);
    ck_assert_ptr_ne(object_container("rooms"), lamps);
    ck_assert_ptr_eq(lamps->parent, &object_root);
    ck_assert_ptr_eq(object_child(&object_root, "lamps"), lamps);
    ck_assert_ptr_null(object_child(&object_root, "lamp"));
    ck_assert_str_eq(lamps->type->name, "container");
}
END_TEST

START_TEST(attach_and_detach)
{
    AUTO_ERROR struct error err = {0};
    struct object *lamps = object_container("lamps");
    struct lamp a = {.colour = 7}, b = {0};

    ck_assert_int_eq(object_attach(&a.object, &lamp_type, lamps, "a", &err), 0);
    ck_assert_int_eq(a.colour, 7);
    ck_assert_int_eq(object_attach(&b.object, &lamp_type, lamps, "a", &err), -EEXIST);
    assert_error(&err, ERROR_GENERIC, -EEXIST, "attempt to add duplicate property 'a' to object (type 'container')");
    ck_assert_ptr_null(b.object.parent);
    object_detach(&b.object);
    ck_assert_ptr_eq(object_child(lamps, "a"), &a.object);
    ck_assert_int_eq(object_attach(&b.object, &lamp_type, &a.object, "a", &err), 0);
    ck_assert_ptr_eq(object_resolve("/lamps/a/a", &err), &b.object);
    object_detach(&b.object);
    object_detach(&a.object);
    object_detach(&a.object);
    ck_assert_ptr_null(object_child(lamps, "a"));
    ck_assert(list_is_empty(&lamps->children));
    ck_assert_int_eq(object_attach(&a.object, &lamp_type, lamps, "a", &err), 0);
    object_detach(&a.object);
}
END_TEST

START_TEST(resolve)
{
    AUTO_ERROR struct error err = {0};
    struct lamp a = {0}, b = {0}, other = {0};

    object_attach(&a.object, &lamp_type, object_container("lamps"), "a", NULL);
    object_attach(&b.object, &lamp_type, object_container("lamps"), "b", NULL);
    object_attach(&other.object, &bare_type, object_container("rooms"), "b", NULL);
    ck_assert_ptr_eq(object_resolve("/", &err), &object_root);
    ck_assert_ptr_eq(object_resolve("/lamps", &err), object_container("lamps"));
    ck_assert_ptr_eq(object_resolve("/lamps/a", &err), &a.object);
    ck_assert_ptr_eq(object_resolve("/lamps/b", &err), &b.object);
    ck_assert_ptr_eq(object_resolve("/rooms/b", &err), &other.object);
    ck_assert_ptr_eq(object_resolve("a", &err), &a.object);
    ck_assert_ptr_null(object_resolve("b", &err));
    assert_error(&err, ERROR_GENERIC, -EINVAL, "Path 'b' does not uniquely identify an object");
    static const char *const absent[] = {"", "c", "/c", "/lamps/c", "/lamps/a/a", "lamps/a/", "/a"};

    for (unsigned i = 0; i < array_size(absent); i++) {
        AUTO_FREE char *text = memory_format("Device '%s' not found", absent[i]);

        ck_assert_ptr_null(object_resolve(absent[i], &err));
        assert_error(&err, ERROR_DEVICE_NOT_FOUND, -ENOENT, text);
    }
    object_detach(&a.object);
    object_detach(&b.object);
    object_detach(&other.object);
}
END_TEST

START_TEST(get)
{
    AUTO_ERROR struct error err = {0};
    struct object_value value = {0};
    struct lamp a = {.on = true, .colour = -5, .hours = UINT64_MAX}, bare = {0};

    object_attach(&a.object, &lamp_type, object_container("lamps"), "a", NULL);
    object_attach(&bare.object, &bare_type, object_container("lamps"), "bare", NULL);
    ck_assert_int_eq(object_get(&a.object, "on", &value, &err), 0);
    ck_assert(value.kind == OBJECT_BOOL && value.boolean);
    ck_assert_int_eq(object_get(&a.object, "colour", &value, &err), 0);
    ck_assert(value.kind == OBJECT_INT && value.integer == -5);
    ck_assert_int_eq(object_get(&a.object, "hours", &value, &err), 0);
    ck_assert(value.kind == OBJECT_SIZE && value.size == UINT64_MAX);
    ck_assert_int_eq(object_get(&a.object, "maker", &value, &err), 0);
    ck_assert_int_eq(value.kind, OBJECT_STRING);
    ck_assert_str_eq(value.string, "maker of a");
    object_value_clear(&value);
    ck_assert_ptr_null(value.string);
    object_value_clear(&value);
    ck_assert_int_eq(object_get(&a.object, "weight", &value, &err), -ENOENT);
    assert_error(&err, ERROR_GENERIC, -ENOENT, "Property 'lamp.weight' not found");
    ck_assert_int_eq(object_get(&bare.object, "on", &value, &err), -ENOENT);
    assert_error(&err, ERROR_GENERIC, -ENOENT, "Property 'bare.on' not found");
    object_detach(&a.object);
    object_detach(&bare.object);
}
END_TEST

START_TEST(set)
{
    AUTO_ERROR struct error err = {0};
    struct object_value yes = {.kind = OBJECT_BOOL, .boolean = true}, three = {.kind = OBJECT_INT, .integer = 3},
                        minus = {.kind = OBJECT_INT, .integer = -1}, size = {.kind = OBJECT_SIZE, .size = 3};
    struct lamp a = {0};

    object_attach(&a.object, &lamp_type, object_container("lamps"), "a", NULL);
    ck_assert_int_eq(object_set(&a.object, "on", &yes, &err), 0);
    ck_assert(a.on);
    ck_assert_int_eq(object_set(&a.object, "colour", &three, &err), 0);
    ck_assert_int_eq(a.colour, 3);
    ck_assert_int_eq(object_set(&a.object, "colour", &minus, &err), -ERANGE);
    assert_error(&err, ERROR_GENERIC, -ERANGE, "colour must not be negative");
    ck_assert_int_eq(object_set(&a.object, "colour", &yes, &err), -EINVAL);
    assert_error(&err, ERROR_GENERIC, -EINVAL, "Property 'lamp.colour' expects a value of type 'int'");
    ck_assert_int_eq(object_set(&a.object, "hours", &size, &err), -EPERM);
    assert_error(&err, ERROR_GENERIC, -EPERM, "Property 'lamp.hours' is read-only");
    ck_assert_int_eq(object_set(&a.object, "weight", &three, &err), -ENOENT);
    assert_error(&err, ERROR_GENERIC, -ENOENT, "Property 'lamp.weight' not found");
    ck_assert_int_eq(a.colour, 3);
    object_detach(&a.object);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("object");
    TCase *tests = tcase_create("object");

    tcase_add_test(tests, containers);
    tcase_add_test(tests, attach_and_detach);
    tcase_add_test(tests, resolve);
    tcase_add_test(tests, get);
    tcase_add_test(tests, set);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    return failed != 0;
}
