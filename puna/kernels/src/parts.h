// Sixteen numbers in as many registers as that takes, used as the compiler's own vectors are. GCC
// keeps vectors wider than the processor's in memory, but a struct of registers in registers.
#pragma once

#include <type_traits>
#include <utility>

#include "registers.h"

namespace puna {

template <class T, class Register>
struct Parts {
    static constexpr int COUNT = 16 / WIDTH, LENGTH = sizeof(Register) / sizeof(T);
    Register part[COUNT];

    // Of what make(number of a part) gives.
    template <class Make>
    static Parts of(Make make) {
        return [&]<int... I>(std::integer_sequence<int, I...>) {
            return Parts{{make(I)...}};
        }(std::make_integer_sequence<int, COUNT>{});
    }

    T operator[](int i) const { return part[i / LENGTH][i % LENGTH]; }
    T& operator[](int i) { return part[i / LENGTH][i % LENGTH]; }

    // The same bits as other numbers.
    template <class U, class Other>
    explicit operator Parts<U, Other>() const {
        return Parts<U, Other>::of([&](int i) { return (Other)part[i]; });
    }

    Parts operator-() const {
        return of([&](int i) { return -part[i]; });
    }
};

// What comparisons give, of any numbers.
template <class T, class R>
using Truths = Parts<int32_t, IntLanes>;

// An operator of two, either of which may be a single number.
#define PUNA_OPERATOR(op, Result)                                                       \
    template <class T, class R>                                                         \
    inline Result<T, R> operator op(const Parts<T, R>& a, const Parts<T, R>& b) {       \
        return Result<T, R>::of([&](int i) { return a.part[i] op b.part[i]; });         \
    }                                                                                   \
    template <class T, class R>                                                         \
    inline Result<T, R> operator op(const Parts<T, R>& a, std::type_identity_t<T> b) {  \
        return Result<T, R>::of([&](int i) { return a.part[i] op b; });                 \
    }                                                                                   \
    template <class T, class R>                                                         \
    inline Result<T, R> operator op(std::type_identity_t<T> a, const Parts<T, R>& b) {  \
        return Result<T, R>::of([&](int i) { return a op b.part[i]; });                 \
    }

#define PUNA_ARITHMETIC(op)                                                             \
    PUNA_OPERATOR(op, Parts)                                                            \
    template <class T, class R, class Other>                                            \
    inline Parts<T, R>& operator op##=(Parts<T, R>& a, const Other& b) {                \
        return a = a op b;                                                              \
    }

PUNA_ARITHMETIC(+)
PUNA_ARITHMETIC(-)
PUNA_ARITHMETIC(*)
PUNA_ARITHMETIC(/)
PUNA_ARITHMETIC(&)
PUNA_ARITHMETIC(|)
PUNA_ARITHMETIC(^)
PUNA_ARITHMETIC(<<)
PUNA_ARITHMETIC(>>)
PUNA_OPERATOR(<, Truths)
PUNA_OPERATOR(>, Truths)
PUNA_OPERATOR(<=, Truths)
PUNA_OPERATOR(>=, Truths)
PUNA_OPERATOR(==, Truths)
PUNA_OPERATOR(!=, Truths)

#undef PUNA_ARITHMETIC
#undef PUNA_OPERATOR

}  // namespace puna
