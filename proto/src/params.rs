//! How the parameters of methods are written: each with its fields, without what all of them have in common.
//!
//! Invariants: a parameter that is not known is an error, in every method; one that may be left out is
//! left out on the wire when there is nothing to say. (`serde(flatten)` would share fields too, but then nothing
//! notices an unknown one.)
//! Absent: replies, which may gain fields and are plain structs.

/// `name: T` is required, `name?: T` an option, and `name: T = default` is its type's default when left out.
macro_rules! params {
    () => {};
    (@next { $(#[$about:meta])* $name:ident } { $($done:tt)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($done)* }
    };
    (@next $of:tt { $($done:tt)* } $(#[$about:meta])* $field:ident: $type:ty, $($rest:tt)*) => {
        params!(@next $of { $($done)* $(#[$about])* pub $field: $type, } $($rest)*);
    };
    (@next $of:tt { $($done:tt)* } $(#[$about:meta])* $field:ident?: $type:ty, $($rest:tt)*) => {
        params!(@next $of {
            $($done)*
            $(#[$about])*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>,
        } $($rest)*);
    };
    (
        @next $of:tt { $($done:tt)* }
        $(#[$about:meta])* $field:ident: $type:ty = default, $($rest:tt)*
    ) => {
        params!(@next $of {
            $($done)*
            $(#[$about])*
            #[serde(default, skip_serializing_if = "crate::params::is_default")]
            pub $field: $type,
        } $($rest)*);
    };
    ($(#[$about:meta])* $name:ident { $($fields:tt)* } $($rest:tt)*) => {
        params!(@next { $(#[$about])* $name } {} $($fields)*);
        params!($($rest)*);
    };
}

pub(crate) use params;

/// Whether a value says nothing.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
