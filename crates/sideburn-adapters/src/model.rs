//! What a model must offer to be adapted, loaded and counted.

use burn::tensor::Device;

use crate::base_weight::BaseWeight;
use crate::embedding::{AdaptedTable, AdaptedVector};
use crate::linear::AdaptedLinear;
use crate::outline::{ModelOutline, ModelShape, Site, SiteKind};
use crate::set::AdapterSet;
use crate::slot::Slot;

/// A site in a model that holds weights, borrowed.
#[derive(Debug)]
pub enum Weight<'a> {
    /// A linear layer.
    Linear(&'a AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a AdaptedVector),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a AdaptedTable),
}

/// A site in a model that holds weights, to be changed.
#[derive(Debug)]
pub enum WeightMut<'a> {
    /// A linear layer.
    Linear(&'a mut AdaptedLinear),
    /// A vector, such as the scale of a norm.
    Vector(&'a mut AdaptedVector),
    /// A table, such as an embedding `[rows, width]`.
    Table(&'a mut AdaptedTable),
}

impl<'a> Weight<'a> {
    /// The weight of the base.
    pub fn weight(&self) -> &'a BaseWeight {
        match self {
            Self::Linear(linear) => linear.weight(),
            Self::Vector(vector) => vector.weight(),
            Self::Table(table) => table.weight(),
        }
    }

    /// The bias of a linear layer that has one.
    pub fn bias(&self) -> Option<&'a BaseWeight> {
        if let Self::Linear(linear) = self { linear.bias() } else { None }
    }

    /// The tensors of the base, by the names that Hugging Face gives them; `name` is that of the site in
    /// [`weights`](AdaptedModel::weights).
    pub fn tensors(&self, name: &str) -> impl Iterator<Item = (String, &'a BaseWeight)> + use<'a> {
        let weight = if let Self::Linear(_) = self { format!("{name}.weight") } else { name.to_owned() };
        let bias = self.bias().map(|bias| (format!("{name}.bias"), bias));
        [(weight, self.weight())].into_iter().chain(bias)
    }

    /// What adapters have here, in the order in which they were attached.
    pub fn slots(&self) -> Vec<&'a Slot> {
        match self {
            Self::Linear(linear) => linear.slots().collect(),
            Self::Vector(vector) => vector.slots().collect(),
            Self::Table(table) => table.slots().collect(),
        }
    }
}

impl<'a> WeightMut<'a> {
    /// The site, borrowed.
    pub fn as_weight(&self) -> Weight<'_> {
        match self {
            Self::Linear(linear) => Weight::Linear(linear),
            Self::Vector(vector) => Weight::Vector(vector),
            Self::Table(table) => Weight::Table(table),
        }
    }

    /// The weight of the base, and the bias of a linear layer that has one.
    pub(crate) fn into_parts(self) -> (&'a mut BaseWeight, Option<&'a mut BaseWeight>) {
        match self {
            Self::Linear(linear) => linear.parts_mut(),
            Self::Vector(vector) => (vector.weight_mut(), None),
            Self::Table(table) => (table.weight_mut(), None),
        }
    }

    /// The weight of the base, to be replaced.
    pub fn into_weight_mut(self) -> &'a mut BaseWeight {
        self.into_parts().0
    }

    /// The same of [`Weight::tensors`], to be replaced.
    pub(crate) fn into_tensors_mut(self, name: &str) -> impl Iterator<Item = (String, &'a mut BaseWeight)> + use<'a> {
        let names: Vec<String> = self.as_weight().tensors(name).map(|(name, _)| name).collect();
        let (weight, bias) = self.into_parts();
        names.into_iter().zip([weight].into_iter().chain(bias))
    }

    pub(crate) fn into_slots_mut(self) -> Vec<&'a mut Slot> {
        match self {
            Self::Linear(linear) => linear.ruled_mut().iter_mut().map(|ruled| &mut ruled.slot).collect(),
            Self::Vector(vector) => vector.ruled_mut().iter_mut().map(|ruled| &mut ruled.slot).collect(),
            Self::Table(table) => table.ruled_mut().iter_mut().map(|ruled| &mut ruled.slot).collect(),
        }
    }

    /// Removes slots.
    pub(crate) fn retain(self, is_kept: impl Fn(&Slot) -> bool) {
        match self {
            Self::Linear(linear) => linear.ruled_mut().retain(|ruled| is_kept(&ruled.slot)),
            Self::Vector(vector) => vector.ruled_mut().retain(|ruled| is_kept(&ruled.slot)),
            Self::Table(table) => table.ruled_mut().retain(|ruled| is_kept(&ruled.slot)),
        }
    }
}

impl<'a> From<&'a AdaptedLinear> for Weight<'a> {
    fn from(linear: &'a AdaptedLinear) -> Self {
        Self::Linear(linear)
    }
}

impl<'a> From<&'a AdaptedVector> for Weight<'a> {
    fn from(vector: &'a AdaptedVector) -> Self {
        Self::Vector(vector)
    }
}

impl<'a> From<&'a AdaptedTable> for Weight<'a> {
    fn from(table: &'a AdaptedTable) -> Self {
        Self::Table(table)
    }
}

impl<'a> From<&'a mut AdaptedLinear> for WeightMut<'a> {
    fn from(linear: &'a mut AdaptedLinear) -> Self {
        Self::Linear(linear)
    }
}

impl<'a> From<&'a mut AdaptedVector> for WeightMut<'a> {
    fn from(vector: &'a mut AdaptedVector) -> Self {
        Self::Vector(vector)
    }
}

impl<'a> From<&'a mut AdaptedTable> for WeightMut<'a> {
    fn from(table: &'a mut AdaptedTable) -> Self {
        Self::Table(table)
    }
}

/// Writes [`weights`](AdaptedModel::weights) and [`weights_mut`](AdaptedModel::weights_mut) of an [`AdaptedModel`] from one
/// list, since Rust is not generic over `&` and `&mut`.
///
/// The block pushes names with weights onto the list. In it, `borrow!` borrows a part of the model; `each!` goes through a
/// list of parts; and `some!` looks into an option:
///
/// ```
/// # use burn::{module::Module, tensor::Device};
/// # use sideburn_adapters::{AdaptedLinear, AdaptedModel, AdaptedTable, AdapterSet, ModelShape, list_weights};
/// # #[derive(Module, Debug)]
/// # struct Model { embedding: AdaptedTable, layers: Vec<AdaptedLinear>, head: Option<AdaptedLinear>, adapters: AdapterSet }
/// impl AdaptedModel for Model {
///     list_weights! { |model, list, borrow, each, some| {
///         list.push(("wte.weight".to_owned(), borrow!(model.embedding).into()));
///         for (index, layer) in each!(model.layers).enumerate() {
///             list.push((format!("h.{index}"), layer.into()));
///         }
///         if let Some(head) = some!(model.head) {
///             list.push(("lm_head".to_owned(), head.into()));
///         }
///     }}
/// #   fn shape(&self) -> ModelShape { ModelShape::of_layers() }
/// #   fn device(&self) -> Device { self.embedding.device() }
/// #   fn adapters(&self) -> &AdapterSet { &self.adapters }
/// #   fn adapters_mut(&mut self) -> &mut AdapterSet { &mut self.adapters }
/// }
/// ```
#[macro_export]
macro_rules! list_weights {
    (|$model:ident, $list:ident, $borrow:ident, $each:ident, $some:ident| $body:block) => {
        $crate::list_weights! { @both ($) $model $list $borrow $each $some $body }
    };
    // The first argument is a dollar sign, which cannot be written into the macros inside.
    (@both ($d:tt) $model:ident $list:ident $borrow:ident $each:ident $some:ident $body:block) => {
        fn weights(&self) -> Vec<(String, $crate::Weight<'_>)> {
            #[allow(unused_macros)]
            macro_rules! $borrow { ($d part:expr) => { &$d part }; }
            #[allow(unused_macros)]
            macro_rules! $each { ($d blocks:expr) => { $d blocks.iter() }; }
            #[allow(unused_macros)]
            macro_rules! $some { ($d option:expr) => { $d option.as_ref() }; }
            let ($model, mut $list) = (self, Vec::new());
            $body;
            $list
        }

        fn weights_mut(&mut self) -> Vec<(String, $crate::WeightMut<'_>)> {
            #[allow(unused_macros)]
            macro_rules! $borrow { ($d part:expr) => { &mut $d part }; }
            #[allow(unused_macros)]
            macro_rules! $each { ($d blocks:expr) => { $d blocks.iter_mut() }; }
            #[allow(unused_macros)]
            macro_rules! $some { ($d option:expr) => { $d option.as_mut() }; }
            let ($model, mut $list) = (self, Vec::new());
            $body;
            $list
        }
    };
}

/// A model built from [`AdaptedLinear`] layers, whose weights have the names that Hugging Face gives them.
///
/// A model lists its weights in [`weights`](Self::weights) and [`weights_mut`](Self::weights_mut), in the same order;
/// sites, loading, saving, freezing and counting follow from the lists.
pub trait AdaptedModel {
    /// Every weight with its name: `encoder.block.0.layer.0.SelfAttention.q` for a linear layer (without `.weight`),
    /// `shared.weight` for any other.
    fn weights(&self) -> Vec<(String, Weight<'_>)>;

    /// The same, to be changed.
    fn weights_mut(&mut self) -> Vec<(String, WeightMut<'_>)>;

    /// What kind of model it is.
    fn shape(&self) -> ModelShape;

    /// Parts of the names of linear layers that are never quantised, and are in `f32` in a model that is in `f16`:
    /// `_keep_in_fp32_modules` of the family in `transformers`, such as `wo` of T5.
    fn keep_in_fp32_modules(&self) -> &'static [&'static str] {
        &[]
    }

    /// Where it is.
    fn device(&self) -> Device;

    /// The adapters that the model has.
    fn adapters(&self) -> &AdapterSet;

    /// The adapters that the model has, to be changed.
    fn adapters_mut(&mut self) -> &mut AdapterSet;

    /// What the model is made of. Nothing is initialised.
    fn outline(&self) -> ModelOutline {
        let shape = self.shape();
        let site = |(name, weight): (String, Weight<'_>)| {
            let name = Site::name_of(&name).to_owned();
            let kind = match weight {
                Weight::Linear(linear) => {
                    let [out, input] = linear.shape();
                    SiteKind::Linear { out, input, bias: linear.bias().is_some() }
                }
                Weight::Vector(vector) => SiteKind::Vector { len: vector.len() },
                Weight::Table(table) => {
                    let [rows, width] = table.shape();
                    match name == shape.embedding {
                        true => SiteKind::Embedding { rows, width },
                        false => SiteKind::Table { rows, width },
                    }
                }
            };
            Site { name, kind }
        };
        let mut sites: Vec<Site> = self.weights().into_iter().map(site).collect();
        let embedding = sites.iter().find_map(|site| match site.kind {
            SiteKind::Embedding { rows, width } => Some([rows, width]),
            _ => None,
        });
        if let Some([rows, width]) = embedding {
            let readers = shape.embedding_copies.iter().filter(|copy| **copy != shape.head);
            let readers = readers.map(|name| Site { name: (*name).to_owned(), kind: SiteKind::Reader { rows, width } });
            let head = Site { name: shape.head.to_owned(), kind: SiteKind::TiedHead { rows, width } };
            sites.extend(readers.chain(shape.tied_head.then_some(head)));
        }
        ModelOutline { shape, sites }
    }

    /// The linear layers with their names.
    fn linears(&self) -> Vec<(String, &AdaptedLinear)> {
        let linear = |(name, weight)| if let Weight::Linear(linear) = weight { Some((name, linear)) } else { None };
        self.weights().into_iter().filter_map(linear).collect()
    }

    /// The linear layers with their names, to be changed.
    fn linears_mut(&mut self) -> Vec<(String, &mut AdaptedLinear)> {
        let linear = |(name, weight)| if let WeightMut::Linear(linear) = weight { Some((name, linear)) } else { None };
        self.weights_mut().into_iter().filter_map(linear).collect()
    }
}
